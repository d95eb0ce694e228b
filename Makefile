# Everything here needs Go, gcc, make and git; nothing needs Docker or a JVM.
GO      ?= go
OUT     ?= out
FUZZTIME ?= 30s

.PHONY: run test race lint fuzz bench test-corpora want

run: ## carry the fixtures through the whole line, embedded broker included
	rm -rf $(OUT)/fixtures
	$(GO) run ./cmd/deidentify replay fixtures/events fixtures/bad --tenants fixtures/tenants.jsonl --out $(OUT)/fixtures
	$(GO) run ./cmd/deidentify check $(OUT)/fixtures

test: ## all tests that need nothing else; -count=1, for some start processes
	$(GO) vet ./...
	$(GO) test -count=1 ./...

race: ## the same under the race detector
	$(GO) test -race -count=1 ./...

lint: ## formatting, vet, staticcheck, tidy module
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w on these"; exit 1; }
	$(GO) vet -tags corpora ./...
	$(GO) tool staticcheck -tags corpora ./...
	$(GO) mod tidy -diff

fuzz: ## every fuzz target for FUZZTIME
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
	  done; done

bench: ## every benchmark; GO bench format on stdout, for benchstat
	$(GO) test -run '^$$' -bench . -benchmem ./...

test-corpora: ## the tests that read real records; CORPORA names their folder
	@test -d "$(CORPORA)" || { echo "set CORPORA to the folder of real records"; exit 1; }
	CORPORA="$(abspath $(CORPORA))" $(GO) test -count=1 -tags corpora -run Corpora -v ./cmd/deidentify

want: ## write fixtures/want again, to be read before it is committed
	$(GO) test -count=1 -run TestFixtures ./cmd/deidentify -update
