/* What ucx-sys binds. Only ucp and the parts of ucs that it shows in its interface; never uct. */
#include <ucp/api/ucp.h>
#include <ucs/config/global_opts.h>
