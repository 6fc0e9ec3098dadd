# The CUDA language, for sm_80 (mma, cp.async) and sm_90a, with warnings as errors. What ptxas says
# about each kernel is kept beside the objects, for tools/gpu/ptxas_report.py.
find_program(NVCC nvcc HINTS ENV CUDACXX PATHS /usr/local/cuda/bin)
if(NOT NVCC)
  message(FATAL_ERROR "LONGHAUL_CUDA is on, but nvcc was not found. Install the CUDA Toolkit, or put "
    "nvcc into PATH, or build without: cmake --preset cpu")
endif()
if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER ${NVCC})
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real)
endif()
enable_language(CUDA)
# CMake 3.25 takes for granted that there is nvToolsExt, which the toolkit has no more since 13.
if(NOT TARGET CUDA::nvToolsExt)
  add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
endif()
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_EXTENSIONS OFF)
# CMake 3.25 does not know that nvcc 13 has C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
# Relaxed: constexpr functions of the host (kernels/select_math.h, std::min) run on the device too.
set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} --expt-relaxed-constexpr --Werror all-warnings -Xcompiler=-Wall,-Wextra,-Werror -Xptxas=-v")
set(CMAKE_CUDA_FLAGS_RELWITHDEBINFO "-O3 -lineinfo -DNDEBUG")
set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CURRENT_LIST_DIR}/nvcc_with_report.sh ${CCACHE})
