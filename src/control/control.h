/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control API (proto/kvtier/v1/control.proto) of a running agent, over gRPC on a unix socket,
 * in threads of its own. It touches the agent through control_call.h alone.
 */
#ifndef KVT_CONTROL_H
#define KVT_CONTROL_H

#include "kvt/status.h"

struct agent;
struct control;

/**
 * Serve at the config's control.path. Its threads run at low priority: who asks much waits longer,
 * and the data path does not.
 *
 * @param agent      Opened; the reactor may start later, until then calls wait.
 * @param control_p  NULL if the config wants none.
 * @return KVT_OK, or why not, in err.
 */
enum kvt_status control_start(struct agent *agent, struct control **control_p,
                              struct kvt_error *err) KVT_MUST_CHECK;
/** The reactor has ended. Open calls are canceled; waits for all threads. NULL is fine. */
void control_stop(struct control *control);

#endif
