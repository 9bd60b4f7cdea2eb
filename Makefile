# Cresset's verbs: each calls the pipeline, in a .venv made from hash-pinned dependencies.
# Settings go on the line (make build CCA=8.6), into the shell, or into .env.

.DEFAULT_GOAL := build
.PHONY: help env over config doctor plan build build-only up exec start down run ls fixes devcontainer wheels matrix find page lock attest verify updates eject install-compose test test-slow test-torch lint format bench bench-start bench-matrix recording docs requirements clean

PYTHON ?= python3
CRESSET := .venv/bin/python -m pipeline
READY := .venv/ready
TESTABLE := .venv/testable

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

doctor: $(READY)  ## Say what is wrong with this machine, and the command that mends it.
	@$(CRESSET) doctor
env: $(READY)  ## Write a commented .env for this user and machine; never overwrites one.
	@$(CRESSET) env
over: $(READY)  ## Write docker-compose.override.yaml; never overwrites one.
	@$(CRESSET) over
config: $(READY)  ## Show every setting, its value and where that came from.
	@$(CRESSET) config
matrix: $(READY)  ## List the images of images.toml, and which the registry has already.
	@$(CRESSET) matrix
plan: $(READY)  ## Show what a build would do.
	@$(CRESSET) plan
eject: $(READY)  ## Write the image as a plain Dockerfile, into ejected/.
	@$(CRESSET) eject
build: $(READY)  ## Build, check and deliver the image; prints its digest reference.
	@$(CRESSET) build
build-only: $(READY)  ## The same, starting no container.
	@$(CRESSET) build-only
up: $(READY)  ## Start a fresh container from the image, pulled if its registry has it.
	@$(CRESSET) up
exec: $(READY)  ## Enter the running container, as you, in the project's folder.
	@$(CRESSET) exec
start: $(READY)  ## Start a stopped container as it was left.
	@$(CRESSET) start
down: $(READY)  ## Stop and delete the containers.
	@$(CRESSET) down
run: $(READY)  ## A shell in a container of its own, to see why one does not start.
	@$(CRESSET) run
ls: $(READY)  ## List all Compose projects.
	@$(CRESSET) ls
fixes: $(READY)  ## Say what keeps the container from working, and mend it.
	@$(CRESSET) fixes
devcontainer: $(READY)  ## Write .devcontainer/ for VS Code and its kin; never overwrites a file.
	@$(CRESSET) devcontainer
wheels: $(READY)  ## Compile torch and torchvision as the settings say; prints the wheels' files.
	@$(CRESSET) wheels
find: $(READY)  ## Print the image in REGISTRY that fits this machine's GPUs.
	@$(CRESSET) find
page: $(READY)  ## Write a page of the images in REGISTRY, dist/tags.html.
	@$(CRESSET) page
lock: $(READY)  ## Write down in cresset.lock what the image is made of.
	@$(CRESSET) lock
updates: $(READY)  ## List the releases of torch that the tables lack.
	@$(CRESSET) updates
attest: $(READY)  ## Attach what proves it to the published image: SBOM, provenance, signature.
	@$(CRESSET) attest
verify: $(READY)  ## Check an image in a registry: make verify REF=registry/name:tag
	@$(CRESSET) verify $(REF)
install-compose: $(READY)  ## Put Docker's Compose plugin in place for this user; needs no root.
	@$(CRESSET) install-compose
test: $(TESTABLE)  ## Lint, type-check and test, on the real engine too.
	@.venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy && .venv/bin/pytest -m "not slow" -n 2
test-slow: $(TESTABLE)  ## The tests that take longer.
	@command -v npm >/dev/null || (apt-get update -q && apt-get install -q -y --no-install-recommends npm)
	@.venv/bin/pytest -m "slow and not hours"
test-torch: $(TESTABLE)  ## The tests of hours: PyTorch compiled, which goes on where it stopped, and twelve images by two engines.
	@.venv/bin/pytest -m hours -s
lint: $(READY)  ## Lint and type-check.
	@.venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy
format: $(READY)  ## Format the code, and mend what the linter can.
	@.venv/bin/ruff check --fix && .venv/bin/ruff format
bench: $(TESTABLE)  ## Time a build with nothing to do beside docker buildx.
	@.venv/bin/python -m tests.bench.noop
bench-start: $(READY)  ## Time the entrypoint of IMAGE, in the Docker that answers.
	@.venv/bin/python -m tests.bench.start "$(IMAGE)"
bench-matrix: $(READY)  ## Time the planning of ten thousand images.
	@.venv/bin/python -m tests.bench.matrix
recording: $(READY)  ## Record .github/terminal.svg, with IMAGE in the Docker that answers.
	@.venv/bin/python -m tests.recording "$(IMAGE)"
docs: $(READY)  ## Renew the generated parts of both READMEs.
	@.venv/bin/python -m tests.readme
requirements: $(READY)  ## Renew requirements.lock.
	@.venv/bin/uv pip compile --quiet --upgrade --generate-hashes --extra dev --custom-compile-command "make requirements" pyproject.toml --output-file requirements.lock
clean:  ## Remove dist/ and .venv; the local engine serves other checkouts too and stays.
	@rm -rf dist .venv

# pip checks every hash, since the lock has one for each package; as root it also gets what the
# local engine needs from apt, which nothing else installs.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@if [ "$$(id -u)" = 0 ]; then $(CRESSET) engine requirements --install >&2; fi
	@touch $@

# The tests start a real registry, Redis, git server and Docker daemon themselves, and compile with a
# real ccache. By command and package: what another package brings is not installed beside it.
TOOLS := ccache:ccache docker:docker.io docker-registry:docker-registry dockerd:docker.io faketime:faketime gcc:gcc git:git redis-server:redis-server ssh:openssh-client tmux:tmux
$(TESTABLE): $(READY) Makefile
	@missing=$$(for it in $(TOOLS); do command -v $${it%:*} >/dev/null || echo $${it#*:}; done); [ -z "$$missing" ] || (apt-get update -q && apt-get install -q -y --no-install-recommends $$missing libc6-dev)
	@touch $@
