# For shells that begin with an empty environment, or with the system's own PATH: what the container
# was started with, under whatever is set already.
# Only what is one's own: root would run what a user wrote.
if [ -O /run/cresset/environment ]; then
    cresset_now=$(export -p)
    . /run/cresset/environment
    cresset_path=$PATH
    eval "$cresset_now"
    case ":$PATH:" in
        *":${VIRTUAL_ENV:-/nonexistent}/bin:"*) ;;
        *) export PATH="$cresset_path" ;;
    esac
    unset cresset_now cresset_path
fi
