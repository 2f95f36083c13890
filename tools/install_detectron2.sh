#!/usr/bin/env bash
# Install detectron2 into the running Python environment, after requirements.txt.
#
# detectron2 is not on the package index under its own name. sal-detectron2 0.7.2 is a wheel of the official repository's
# commit a59f0563 plus one list(...) fix for Python 3.11; its compiled part serves rotated and deformable ops only, which
# this project does not use, so the wheel's cp310 tag does not matter. An existing detectron2 is left alone.
#
#   PYTHON=python3 tools/install_detectron2.sh
#   DETECTRON2_SOURCE=git+https://github.com/facebookresearch/detectron2@<commit> tools/install_detectron2.sh
set -euo pipefail
python=${PYTHON:-python3}

if "$python" -c 'import detectron2' 2>/dev/null; then
    echo "detectron2 is already installed: left alone"
    exit 0
fi
if [ -n "${DETECTRON2_SOURCE:-}" ]; then
    exec "$python" -m pip install --no-build-isolation "$DETECTRON2_SOURCE"
fi

site_packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
pinned=$(mktemp)
trap 'rm -f "$pinned"' EXIT
echo "sal-detectron2==0.7.2 --hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561" >"$pinned"
"$python" -m pip install --quiet --target "$site_packages" --no-deps --only-binary=:all: --python-version 3.10 \
    --require-hashes -r "$pinned"
"$python" -W ignore -c 'import detectron2.engine, detectron2.config; print("detectron2", detectron2.__version__, "installed")'
