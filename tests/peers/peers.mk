# `make test-peers`: ours against code that we did not write, which lives in a venv of its own.
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed

.PHONY: test-peers

test-peers: $(STAMP) $(PEERS_STAMP)
	$(BIN)/python -m pytest -rs -m peers tests/peers

$(PEERS_STAMP): tests/peers/constraints-kvpress.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -r $<
	touch $@
