include tests/cudasim/local.mk
include tests/gpu/local.mk
include tests/unit/kernels.mk
include tests/isasim/local.mk
include tests/unit/engine.mk
include tests/unit/format.mk
include tests/unit/store.mk
include tests/unit/tools.mk
include tests/unit/ipc.mk
include tests/unit/model.mk
include tests/bench/local.mk

dist_check_SCRIPTS += tests/check-layers tests/check-headers tests/check-man tests/check-units
TESTS += tests/check-layers tests/check-headers tests/check-man tests/check-units
EXTRA_DIST += tests/lib/run-suite.h tests/bench/stall.py tests/bench/trace.py tests/bench/store .ci/run tools/quickstart tools/install-deps tools/fetch-model tests/run-all tests/make-gguf.py tests/make-hf.py tests/make-tiny.py tests/requirements.txt tests/fresh-machine tests/adapters tests/e2e
