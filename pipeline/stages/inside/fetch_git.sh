#!/bin/bash
# Check a repository out with all of its submodules: whole, or not at all.
#
# Usage: fetch_git.sh URL REF FOLDER ABOUT
# REF is a tag or a full commit. ABOUT is the beginning of the JSON that goes to
# FOLDER/.cresset-source.json. Mirrors, passwords and what git may speak are in GIT_CONFIG_GLOBAL.
#
# What git says decides how it goes on: trouble of the network is waited out, everything else ends
# it at once. A pack that was cut off is fetched anew, as git keeps no half of one; whatever came
# whole, each submodule for itself, stays.

set -euo pipefail

url=$1 ref=$2 folder=$3 about=$4

export LC_ALL=C GIT_TERMINAL_PROMPT=0
export GIT_SSH_COMMAND="ssh -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 \
-o StrictHostKeyChecking=yes -o UserKnownHostsFile=${KNOWN_HOSTS:-/dev/null}"

attempts=6
said=$(mktemp)

network='could(n.t| not) resolve|name resolution|failed to connect|couldn.t connect|timed out|timeout'
network+='|connection (refused|reset|closed|timed)|operation too slow|empty reply|transfer closed'
network+='|(recv|send) failure|gnutls.*(error|failed)|ssl_(read|connect|error_syscall)'
network+='|not closed cleanly|early eof|unexpected disconnect|hung up unexpectedly|rpc failed; curl'
network+='|bad pack header|returned error: (408|429|5[0-9][0-9])'
# These are said last, or beside a line as above that only follows from them.
asks='authentication failed|could not read (username|password)'
final="not found|$asks|permission denied"
final+='|host key verification failed|find remote ref|not our ref|unadvertised object'
final+='|no space left|certificate|transport .* not allowed|returned error: 4(0[0-79]|1[0-9]|2[0-8])'

say() { printf 'source: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
# Names may be anything, a message's own words too.
git_said() { sed "s/ '[^']*'/ /g" "$said" | grep -Ei "$1" > /dev/null; }
without_passwords() { sed -uE 's#(https?://)[^/@[:space:]]*@#\1#g'; }

# Run a command until it succeeds, or fails for what no waiting mends.
patiently() {
  local attempt pause=1
  for ((attempt = 1; ; attempt++)); do
    if "$@" 2>&1 | tee "$said" | without_passwords >&2; then return 0; fi
    if git_said "$asks"; then say "the server wants a login, or another than it was given"; fi
    if git_said "$final" || ! git_said "$network"; then return 1; fi
    if ((attempt == attempts)); then
      say "gave up after $attempts attempts"
      return 1
    fi
    say "the network failed; attempt $((attempt + 1)) of $attempts in $pause s"
    sleep "$pause"
    pause=$((pause * 2))
  done
}

# Some servers hand out nothing but what a branch or a tag stands at, and some only all of it.
too_shallow() { git_said 'unadvertised object|does not support shallow'; }
everything=(--tags origin '+refs/heads/*:refs/remotes/origin/*')

fetch() {
  patiently git fetch -q --depth 1 --no-tags origin "$1" && return
  too_shallow || return 1
  say "the server has no shallow copy of it; fetching the whole history"
  patiently git fetch -q "${everything[@]}"
}

fetch_submodules() {
  # A submodule whose commit is not there yet hides those within it.
  local depth
  for ((depth = 0; depth < 8; depth++)); do
    # Forced, as of an attempt that failed git leaves clones behind without their files, and
    # would take those for checked out that stand at the right commit by chance.
    patiently git submodule update --init --recursive --force --depth 1 --jobs 4 && return
    too_shallow || return 1
    say "a server has no shallow copy of a submodule; fetching its whole history"
    # shellcheck disable=SC2016
    patiently git submodule foreach --quiet --recursive '
      there() { git cat-file -e "$sha1^{commit}" 2> /dev/null; }
      there && exit 0
      deepen=
      [ "$(git rev-parse --is-shallow-repository)" = false ] || deepen=--unshallow
      git fetch -q $deepen '"${everything[*]@Q}"'
      there || { echo "submodule $displaypath: its repository has no commit $sha1"; exit 1; }
    ' || return 1
  done
  return 1
}

# Print the submodules that are not there, or without a file.
incomplete() {
  local status
  # Ends here, and names it, where a submodule has no URL at all.
  status=$(git submodule status --recursive)
  sed -nE 's/^[-+U][0-9a-f]+ //p' <<< "$status"
  # shellcheck disable=SC2016
  git submodule foreach --quiet --recursive \
    '[ -n "$(ls -A | grep -vxF .git)" ] || echo "$displaypath"'
}

git init -q "$folder"
cd "$folder"
git remote add origin "$url"
if [[ $ref =~ ^([0-9a-f]{40}|[0-9a-f]{64})$ ]]; then
  wanted=$ref
  fetch "$ref" || die "$url: no commit $ref could be fetched"
  git cat-file -e "$wanted^{commit}" 2> /dev/null || die "$url has no commit $ref"
else
  wanted=refs/tags/$ref
  if ! fetch "$wanted:$wanted"; then
    git_said 'find remote ref' || die "$url: the tag $ref could not be fetched"
    die "$url has no tag $ref (a branch is named by its commit, with all 40 digits)"
  fi
fi
git checkout -q --detach "$wanted^{commit}"
fetch_submodules || die "$url: the submodules named above could not be fetched"
missing=$(incomplete)
[[ -z $missing ]] || die "$url: submodules that are not there, or empty: ${missing//$'\n'/ }"

commit=$(git rev-parse HEAD)
date=$(git log -1 --format=%ct)
find . -name .git -prune -exec rm -rf {} +
printf '%s, "commit": "%s"}\n' "$about" "$commit" > .cresset-source.json
# The same commit is the same tree, down to the times in the wheels that are made of it.
find . -exec touch -h -d "@$date" {} +
say "$url is at $commit"
