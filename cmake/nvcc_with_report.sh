#!/usr/bin/env bash
# Compiler launcher of CUDA: runs the command and keeps what ptxas says in OBJECT.ptxas, away from
# the warnings.
out=
previous=
for argument in "$@"; do
  if [ "$previous" = -o ]; then out=$argument; fi
  previous=$argument
done
case "$out" in
  *.o) ;;
  *) exec "$@" ;;
esac
"$@" 2>"$out.ptxas"
status=$?
grep -v -E '^ptxas info|^ *[0-9]+ bytes stack frame|^$' "$out.ptxas" >&2
exit $status
