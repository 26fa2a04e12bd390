#!/bin/sh
# Copies the TensorRT of a Triton image into a folder of its own; deploy/export.Dockerfile runs it in that image.
#
#   tensorrt-libraries.sh IMAGE FOLDER [SYSTEM [CUDA]]      SYSTEM, CUDA: where the image has its libraries
#
# FOLDER has then libnvinfer* and libnvonnxparser*, the CUDA runtime and what else of CUDA they are linked with, but
# never the driver's libcuda, which is the host's; `triton-image`: the image and the version of its TensorRT; `bindings`:
# pip's name for the Python half of that TensorRT.
set -eu
image=$1 folder=$2 system=${3:-/usr/lib/x86_64-linux-gnu} cuda=${4:-/usr/local/cuda}

fail() {
  echo "no TensorRT can be taken out of $image: $*" >&2
  exit 1
}

for name in libnvinfer.so libnvinfer_plugin.so libnvonnxparser.so; do
  [ -e "$(ls "$system/$name".*.*.* 2>/dev/null)" ] || fail "$system has not one $name with a whole version"
done
runtime=$(find -L "$cuda/" -name 'libcudart.so.*' | sort | head -n 1)
[ -n "$runtime" ] || fail "$cuda has no libcudart.so"

mkdir -p "$folder"
cp -a "$system"/libnvinfer*.so* "$system"/libnvonnxparser*.so* "$folder"  # -a: links stay links
cp -L "$runtime" "$folder"
find "$folder" -name '*.so*' -type f -exec ldd {} + |
  awk -v cuda="$cuda" 'index($3, cuda) == 1 && $1 !~ /^libcuda\.so/ {print $3, $1}' | sort -u |
  while read -r library name; do cp -L "$library" "$folder/$name"; done

version=$(ls "$system"/libnvinfer.so.*.*.*)
version=${version##*.so.}
major=${runtime##*.so.}
echo "$image $version" > "$folder/triton-image"
echo "tensorrt-cu${major%%.*}-bindings==$version.*" > "$folder/bindings"
