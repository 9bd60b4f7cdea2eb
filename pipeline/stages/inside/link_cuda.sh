# Makes /usr/local/cuda of CUDA packages that lie elsewhere, and checks what came out.
# Usage: link_cuda.sh image|apt|wheels VERSION
set -euo pipefail
source=$1 version=$2 cuda=/usr/local/cuda
wheels=$(echo /opt/build/lib/python3*/site-packages)

link_apt() {
  # Debian and Ubuntu spread the toolkit over /usr, where PyTorch's and Kineto's own search finds
  # half of it. Only CUDA's files are linked: all of /usr/include would go before the compiler's.
  mkdir -p $cuda/{bin,include,lib64}
  dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' 'nvidia-cuda-*' 'libcu*' 'libnv*' |
    sed -n 's/^ii *//p' | xargs dpkg -L | sort -u |
    while read -r file; do
      case $file in
        /usr/include/x86_64-linux-gnu/*) continue ;;
        /usr/include/*) to=include/${file#/usr/include/} ;;
        /usr/lib/x86_64-linux-gnu/stubs/*) to=lib64/stubs/${file##*/} ;;
        /usr/lib/x86_64-linux-gnu/*.so | /usr/lib/x86_64-linux-gnu/*.so.* | \
          /usr/lib/x86_64-linux-gnu/*.a) to=lib64/${file##*/} ;;
        /usr/lib/nvidia-cuda-toolkit/bin/*) to=bin/${file#/usr/lib/nvidia-cuda-toolkit/bin/} ;;
        *) continue ;;
      esac
      [ -d "$file" ] && continue
      mkdir -p "$cuda/$(dirname "$to")"
      ln -sf "$file" "$cuda/$to"
    done
}

link_wheels() {
  # CUDA 13's wheels share one folder, but with lib for lib64, without linker names and without a
  # stub for the driver's library, which only has to be there by name when something links it.
  ln -sfn "$wheels"/nvidia/cu13 $cuda
  ln -sfn lib $cuda/lib64
  mkdir -p $cuda/lib/stubs
  $CC -shared -Wl,-soname,libcuda.so.1 -x c /dev/null -o $cuda/lib/stubs/libcuda.so
}

link_libraries() {
  # cuDNN, NCCL and cuSPARSELt of the package index, with the names that a linker looks for.
  for folder in "$wheels"/nvidia/{cudnn,nccl,cusparselt} "$wheels"/cusparselt; do
    [ -d "$folder/lib" ] || continue
    ln -sf "$folder"/include/*.h $cuda/include/
    ln -sf "$folder"/lib/*.so* $cuda/lib64/
  done
  cd $cuda/lib64
  for library in *.so.[0-9]*; do
    [ -e "${library%%.so.*}.so" ] || ln -s "$library" "${library%%.so.*}.so"
  done
}

case $source in apt) link_apt ;; wheels) link_wheels ;; esac
[ -e $cuda/lib ] || ln -s lib64 $cuda/lib
link_libraries
[ -e $cuda/bin/cuobjdump ] || ln -s "$(command -v cuobjdump)" $cuda/bin/
found=$($cuda/bin/nvcc --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
[ "$found" = "$version" ] || {
  echo "CUDA $version was asked for, and nvcc of CUDA_SOURCE=$source is $found" >&2
  exit 1
}
