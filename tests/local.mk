include tests/unit/model.mk
