# The only command surface; the work is done by localstack/stack.py.

STACK ?= native
RUN = python3 localstack/stack.py
GUIDE = $(RUN) guide
STAGED = $(or $(filter dev prod,$(STAGE)),$(error Name a stage, dev or prod: make $@ STAGE=dev))
ifeq ($(STACK),docker)
SERVE = $(RUN) docker
else
SERVE = $(RUN)
endif

.DEFAULT_GOAL := help
.PHONY: help up down status logs reset watch invoke renew seed migrate build test check bench pages client postman
.PHONY: load chaos deploy destroy redrive

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
	@$(RUN) invoke $(or $(FUNCTION),$(error Name a function: make invoke FUNCTION=auth-signin))

renew: ## Move a subscription on to its next renewal (SUBSCRIPTION=sub_...)
	@$(RUN) renew $(or $(SUBSCRIPTION),$(error Name a subscription: make renew SUBSCRIPTION=sub_...))

seed: ## Fill analytics with a history (EVENTS=100000; needs `make up`)
	@$(RUN) seed $(or $(EVENTS),100000)

migrate: ## Bring both databases to the newest schema
	@$(RUN) migrate

build: ## Compile and zip every function
	@$(RUN) build

test: ## Run every test on a stack of its own
	@$(RUN) --profile test test

pages: ## Drive the served pages in a browser (needs `make up`)
	@$(RUN) suite pages

client: ## Generate the typed client and drive the product with it (needs `make up`)
	@$(RUN) suite client

postman: ## Run the Postman collection with newman (needs `make up`)
	@$(RUN) suite postman

load: ## Send as much as the machine holds (DURATION=300 USERS=16 TARGETS=; needs `make up`)
	@DURATION=$(or $(DURATION),300) USERS=$(or $(USERS),16) TARGETS="$(TARGETS)" $(RUN) suite load

chaos: ## Kill and hold up every dependency under load, then check that all is right (needs `make up`)
	@$(RUN) suite chaos

check: ## Format, lints, template, routes, dependencies
	@$(RUN) check

bench: ## Measure functions, chat, analytics (ARGS=analytics: that alone; EVENTS=1000000; needs `make up`)
	@cargo build --release --package bench
	@cargo run --quiet --release --package bench -- $(if $(EVENTS),--events $(EVENTS)) $(ARGS)

deploy: ## Guide through a deploy into an AWS account (STAGE=dev or prod)
	@$(GUIDE) deploy $(STAGED)

destroy: ## Delete a deployed stack; production asks for its name (STAGE=dev or prod)
	@$(GUIDE) destroy $(STAGED)

redrive: ## Dead letters back to their queue (QUEUE=events, locally or with STAGE=prod)
	@$(GUIDE) redrive $(or $(filter events mail stripe,$(QUEUE)),$(error Name a queue, events, mail or stripe: make redrive QUEUE=events)) $(if $(STAGE),$(STAGED))
