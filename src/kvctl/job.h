/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_KVCTL_JOB_H
#define KVT_KVCTL_JOB_H

#include "api.h"

/**
 * Start a job and, but for --no-wait, wait until it has ended, with progress on stderr; an
 * interrupt cancels it. Its last state goes to *job_p: free it.
 *
 * @param method  That answers with a Job.
 * @param quiet   No progress.
 * @return KVCTL_OK: it is done, or --no-wait; KVCTL_BAD: done, and n_bad is not 0;
 *         KVCTL_INTERRUPTED; KVCTL_FAILED, KVCTL_UNREACHABLE, KVCTL_LATE: said on stderr, and
 *         *job_p may be NULL.
 */
enum kvctl_exit kvctl_job_run(struct kvctl *k, const char *method, const ProtobufCMessage *request,
                              bool quiet, Kvtier__V1__Job **job_p);

/** Print a job on stdout and free it. @return code, or KVCTL_FAILED if stdout did not take it. */
enum kvctl_exit kvctl_job_print(struct kvctl *k, Kvtier__V1__Job *job, enum kvctl_exit code);

#endif
