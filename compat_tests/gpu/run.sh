#!/usr/bin/env bash
# Validates this package on a machine, from facts about its GPU to an hour of speech; see README.md beside this file.
#
#   run.sh OUT [--wheels FOLDER | --site FOLDER] [options of validate.py]
#
# OUT gets validation.json, validation.md and a log of each step. Packages are those of python3 (or $PYTHON), or of the
# wheels in a folder, which are installed into OUT/site without any index, or of a folder that can be imported from.
# The exit status is 0 if every step about correctness passed, 1 if not.
set -euo pipefail

usage() { sed -n '4,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || usage
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
python=${PYTHON:-python3}
site=
while [ $# -ge 2 ]; do
    case $1 in
        --wheels)
            site=$out/site
            "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" "$2"/*.whl
            shift 2
            ;;
        --site)
            site=$(cd "$2" && pwd)
            shift 2
            ;;
        *) break ;;
    esac
done
export PYTHONPATH=${site:+$site:}${PYTHONPATH:-}
if ! (cd / && "$python" -c 'import whisper_max_plugin' 2>/dev/null); then # not installed: the one of this clone
    PYTHONPATH=$PYTHONPATH:$(cd "$here/../.." && pwd)
fi
exec "$python" "$here/validate.py" "$out" "$@"
