# Everything here needs Go, gcc, make and git; test-kafka and chaos also
# need Java 17 and Maven. Nothing needs Docker.
GO      ?= go
OUT     ?= out
FUZZTIME ?= 300000x
TAGS = corpora,kafka,bench

.PHONY: run test test-kafka race lint fuzz bench chaos test-corpora want

run: ## carry the fixtures through the whole line, embedded broker included
	rm -rf $(OUT)/fixtures
	$(GO) run ./cmd/deidentify replay fixtures/events fixtures/bad --tenants fixtures/tenants.jsonl --out $(OUT)/fixtures
	$(GO) run ./cmd/deidentify check $(OUT)/fixtures

test: ## all tests that need nothing else; -count=1, for some start processes
	$(GO) vet ./...
	cd internal/testkit/s3/server && $(GO) tool -n server >/dev/null # build it once, before packages that use it run side by side
	$(GO) test -count=1 ./...

test-kafka: ## on Apache Kafka, which is started; or on the cluster that KAFKA_BROKERS names, those that need not kill it
	$(GO) test -count=1 -tags kafka -run '$(if $(KAFKA_BROKERS),^TestKafka,Kafka)' -v -p 1 -timeout 30m ./internal/testkit/apache ./internal/kafkaio ./cmd/deidentify

race: ## make test under the race detector, with a shorter chaos and samples of long lists of cases
	CHAOS=$${CHAOS:-15s} $(GO) test -race -short -count=1 -timeout 20m ./...

chaos: ## ten minutes of kills, zombies and lost races, then the same on Apache Kafka
	CHAOS=$${CHAOS:-10m} $(GO) test -count=1 -run 'TestChaos$$' -v -timeout 60m ./cmd/deidentify
	CHAOS=$${CHAOS:-10m} $(GO) test -count=1 -tags kafka -run 'TestOwnKafkaChaos$$' -v -timeout 60m ./cmd/deidentify

lint: ## formatting, vet, staticcheck, tidy module
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w on these"; exit 1; }
	$(GO) vet -tags $(TAGS) ./...
	$(GO) tool staticcheck -tags $(TAGS) ./...
	$(GO) mod tidy -diff

fuzz: ## every fuzz target for FUZZTIME: a count, or a time, at whose end go test may report its own deadline as a failure (golang/go#75804)
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
	  done; done

bench: ## every benchmark; GO bench format on stdout, for benchstat. BENCH=Line is the whole line beside its peer
	$(GO) test -tags bench -run '^$$' -bench '$(or $(BENCH),.)' -benchmem -timeout 60m ./...

test-corpora: ## the tests that read real records; CORPORA names their folder
	@test -d "$(CORPORA)" || { echo "set CORPORA to the folder of real records"; exit 1; }
	CORPORA="$(abspath $(CORPORA))" $(GO) test -count=1 -tags corpora -run Corpora -v ./cmd/deidentify

want: ## write fixtures/want again, to be read before it is committed
	$(GO) test -count=1 -run TestFixtures ./cmd/deidentify -update
