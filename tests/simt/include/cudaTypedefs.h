// Stand-in for the types of driver functions; they are in cuda.h.
#pragma once

#include <cuda.h>
