/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/interrupt.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* A signal handler has no argument to carry state in: the one global of this program. */
static atomic_int n_signals;

static void interrupt_handle(int signal_number)
{
    if (atomic_fetch_add(&n_signals, 1) > 0)
        _exit(128 + signal_number); /* the agent follows by itself: it is tied to this process */
}

void kvt_interrupt_setup(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = interrupt_handle;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
}

bool kvt_interrupted(void)
{
    return atomic_load(&n_signals) > 0;
}
