/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_INTERRUPT_H
#define KVT_INTERRUPT_H

#include <stdbool.h>

/** From now on SIGINT and SIGTERM ask for an orderly end; a second one ends the process at once. */
void kvt_interrupt_setup(void);
/** Whether to come to an end. */
bool kvt_interrupted(void);

#endif
