#!/bin/bash
# nvcc behind ccache, with torch's cpp_extension as its caller: that one asks for dependencies by the
# long names of the flags, which ccache 4.11 takes for another source file and caches nothing
# (measured: none of the 6 CUDA files of torchvision 0.21.0; with the short names all of them).
arguments=()
for argument; do
  case $argument in
    --generate-dependencies-with-compile) arguments+=(-MD) ;;
    --dependency-output) arguments+=(-MF) ;;
    *) arguments+=("$argument") ;;
  esac
done
exec ccache "$CUDA_HOME/bin/nvcc" "${arguments[@]}"
