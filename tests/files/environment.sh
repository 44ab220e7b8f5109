# For scripts/files.sh and scripts/fuzz-files.sh, which source this file at the top of the repository. Sets:
#   target        the target directory
#   python        an interpreter with the packages of tests/files/requirements.txt, from PyPI
#   THALLUS_BIN   the directory of thallus and thallus-server, by default release in the target directory
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export THALLUS_BIN=${THALLUS_BIN:-$target/release}
for program in thallus thallus-server; do
    if [ ! -x "$THALLUS_BIN/$program" ]; then
        echo "files: $THALLUS_BIN/$program is missing; cargo build --release --workspace builds it" >&2
        exit 1
    fi
done
environment=$target/files-python
python=$environment/bin/python
wanted=tests/files/requirements.txt
# The copy of the list is the last that is written: an environment that is not complete has none.
if ! cmp -s "$wanted" "$environment/requirements.txt"; then
    rm -rf "$environment"
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$environment/requirements.txt"
fi
