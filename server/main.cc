#include "server/cli.h"

int main(int argc, char** argv) {
  return longhaul::RunCli(argc, argv, longhaul::ReadEnvironment());
}
