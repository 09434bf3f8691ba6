# The only command surface; the work is done by localstack/stack.py.

STACK ?= native
RUN = python3 localstack/stack.py
ifeq ($(STACK),docker)
SERVE = $(RUN) docker
else
SERVE = $(RUN)
endif

.DEFAULT_GOAL := help
.PHONY: help up down status logs reset watch invoke renew seed migrate build test check bench

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: ## Install what is missing and serve the product (STACK=docker: in containers)
	@$(SERVE) up

down: ## Stop everything and keep the data
	@$(SERVE) down

status: ## What runs
	@$(SERVE) status

logs: ## Follow the logs (NAME=fn-auth-me-1: of one process)
	@$(SERVE) logs $(NAME)

reset: ## Stop everything and delete the data
	@$(SERVE) reset

watch: ## Rebuild functions on save, served on port 9000 beside the stack
	@$(RUN) watch

invoke: ## Run one function with its sample event (FUNCTION=auth-signin)
	@$(RUN) invoke $(FUNCTION)

renew: ## Move a subscription on to its next renewal (SUBSCRIPTION=sub_...)
	@$(RUN) renew $(SUBSCRIPTION)

seed: ## Fill analytics with a history (EVENTS=100000)
	@$(RUN) seed $(or $(EVENTS),100000)

migrate: ## Bring both databases to the newest schema
	@$(RUN) migrate

build: ## Compile and zip every function
	@$(RUN) build

test: ## Run every test on a stack of its own
	@$(RUN) --profile test test

check: ## Format, lints, template, routes, dependencies
	@$(RUN) check

bench: ## Measure each function beside an empty one (needs `make up`)
	@cargo build --release --package bench
	@cargo run --quiet --release --package bench -- $(ARGS)
