#!/bin/sh
# The export image's entry point: options alone are the export's, anything else is a command.
#
#   --target onnx --profile musetalk-v15        python -m export --target onnx --profile musetalk-v15
#   lipserve models fetch                       as it is
set -eu
for folder in models model_repository; do
  if [ ! -w "$folder" ]; then
    echo "refused: user $(id -u):$(id -g) may not write to $folder, which belongs to $(stat -c %u:%g "$folder"):" \
      "set EXPORT_USER in .env to your own, as \`id -u\`:\`id -g\` print them, and make the folder yours: chown -R" >&2
    exit 1
  fi
done
case "${1:-}" in
  "" | -*) set -- python -m export "$@" ;;
esac
exec "$@"
