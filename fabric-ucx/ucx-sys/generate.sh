#!/usr/bin/env bash
# Generates src/types.rs from the headers of the oldest supported UCX, 1.13: types and constants, no functions. Needs
# these headers (Debian 12: libucx-dev), libclang, and `cargo install bindgen-cli`. Other builds need none of them.
set -euo pipefail
cd "$(dirname "$0")"
headers=${1:-/usr/include}
grep -q 'UCP_API_MINOR *13$' "$headers/ucp/api/ucp_version.h" ||
    { echo "generate: $headers does not have the headers of UCX 1.13" >&2; exit 1; }
echo '#include <ucp/api/ucp.h>' >/tmp/ucx-sys-wrapper.h
bindgen /tmp/ucx-sys-wrapper.h --output src/types.rs \
    --allowlist-type 'ucp_(params|config|context_attr|worker_params|worker_attr|ep_params|request_param)_t' \
    --allowlist-type 'ucp_(mem_map_params|mem_attr)_t' \
    --allowlist-type 'ucp_(context|worker|ep|rkey|mem|address)_[ht]' \
    --allowlist-type 'ucp_(params|worker_params|worker_attr|ep_params|mem_map_params|mem_attr|context_attr)_field' \
    --allowlist-type 'ucs_status_t|ucs_status_ptr_t|ucs_thread_mode_t|ucs_memory_type' \
    --allowlist-type 'ucp_feature|ucp_err_handling_mode_t|ucp_op_attr_t|ucp_worker_flags_t' \
    --allowlist-type 'ucp_mem_map_flags|ucp_mem_map_prot|ucp_ep_close_flags_t' \
    --allowlist-var 'UCP_(API_MAJOR|API_MINOR|ENTITY_NAME_MAX)|UCP_MEM_MAP_.*|UCP_EP_CLOSE_.*' \
    --blocklist-function '.*' --opaque-type 'sockaddr_storage|FILE|_IO_FILE' \
    --newtype-enum ucs_status_t --default-enum-style consts --no-prepend-enum-name \
    --with-derive-default --no-layout-tests --no-doc-comments -- -I"$headers"
