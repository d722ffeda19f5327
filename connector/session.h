/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session is two connections to the agent. `control` carries lookups and other small calls; the
 * calling threads themselves send on it and receive from it, so that a lookup is one round trip
 * without a thread in between. `data` carries stores and loads; calling threads send their
 * requests, the library thread receives the answers, copies and commits.
 *
 * One mutex guards everything here but what a comment names. It is held for system calls that
 * cannot block, never for a copy. Connections are opened and closed by the library thread alone:
 * another thread that finds a fault marks the connection broken and wakes it.
 */
#ifndef KVT_CONNECTOR_SESSION_H
#define KVT_CONNECTOR_SESSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "arena.h"
#include "copy.h"
#include "kvt/util.h"
#include "kvt/wire.h"
#include "kvtier.h"

#define KVT_CLIENT_NS_MAX    1024
#define KVT_COPY_THREADS_MAX 64
#define KVT_CUDA_THREADS_MAX 16 /* of each direction */
#define KVT_QUEUE_DEPTH_MAX  4096
#define KVT_JOB_BYTES                                                                              \
    (8 * KVT_MIB) /* copied between two looks at the socket, and committed at once */

/*
 * Who copied nothing for so long may copy for so long without giving way. An engine saves at the
 * end of a step, when its other threads spin until the next one: what gives way to them then copies
 * in that one's time instead, a block at each of the scheduler's ticks.
 */
#define KVT_REST_NS  UINT64_C(4000000)
#define KVT_BURST_NS UINT64_C(500000)

#define KVT_ITEM_CUT 1 /* result of a copy that was stopped; no status has this value */

#define KVT_LOOKUP_ANSWER_NS  UINT64_C(1000000000)  /* an agent that is slower counts as away */
#define KVT_RESERVE_ANSWER_NS UINT64_C(5000000000)  /* past the deadline for room */
#define KVT_COMMIT_ANSWER_NS  UINT64_C(60000000000) /* durable ones wait for the disk */
#define KVT_LOAD_DEFAULT_NS   UINT64_C(30000000000)
#define KVT_HELLO_ANSWER_NS   UINT64_C(1000000000)
#define KVT_RECEIVE_WAIT_NS   UINT64_C(20000000) /* a leader sleeps in recv() for so long */
#define KVT_BACKOFF_MIN_NS    UINT64_C(10000000)
#define KVT_BACKOFF_MAX_NS    UINT64_C(1000000000)

enum kvt_client_op_state {
    KVT_OP_FREE,
    KVT_OP_QUEUED, /* in its connection's queue */
    KVT_OP_OPEN,   /* sent */
    KVT_OP_DONE,   /* its completion waits to be polled */
    KVT_OP_ENDING, /* polled; the message that ends it at the agent is still to be sent */
};

enum kvt_client_item_state {
    KVT_ITEM_WAIT, /* not answered */
    KVT_ITEM_HERE, /* has a slot; to be copied */
    KVT_ITEM_SENT, /* store: copied, COMMIT on its way */
    KVT_ITEM_OVER, /* status is final */
};

/* Whose work an op's copies are: each kind has its threads. */
enum kvt_work_kind { KVT_WORK_HOST, KVT_WORK_CUDA_STORE, KVT_WORK_CUDA_LOAD, KVT_WORK_KINDS };

struct kvt_client_item {
    uint64_t offset;
    uint64_t lease_deadline_ns;
    int32_t status;
    enum kvt_client_item_state state;
};

struct kvt_client_op {
    struct kvt_client_op *next; /* in the free list, a queue or `done` */
    struct kvt_client_op *next_ready;
    uint64_t id; /* generation and index of the slot; never 0 */
    void *user;
    enum kvt_client_op_state state;
    enum kvtier_op_type type;
    enum kvt_work_kind kind;
    struct CUevent_st *after; /* with a GPU: what its copies come after; stays with the slot */
    bool is_ready;            /* in the ready list: has items to copy */
    bool is_answered;         /* store: RESERVE_R came */
    bool end_pending;         /* end_type is still to be sent */
    uint16_t end_type;
    int ns;
    uint32_t flags;
    uint32_t n_keys, n_items; /* differ by the parent */
    uint32_t lease_ttl_ms;
    uint32_t n_segments;
    uint64_t chunk_bytes;
    uint64_t deadline_ns; /* as given */
    uint64_t give_up_ns;  /* ends by itself then */
    uint32_t n_over;      /* items in KVT_ITEM_OVER */
    uint32_t n_granted;   /* items that were answered with a slot */
    uint32_t n_settled;   /* of these, given back: committed or refused at commit */
    uint32_t n_running;   /* jobs under way */
    uint32_t work_head, work_tail;
    _Atomic int stop;  /* read by copies without the lock: a status, or 0 */
    int32_t *statuses; /* the caller's */
    uint8_t *where;    /* the caller's */
    kvtier_completion completion;
    const struct kvt_key *keys; /* the caller's while it submits, then kept_keys */
    struct kvt_key *kept_keys;  /* KVT_BATCH_MAX each, allocated with the session */
    struct kvt_client_item *items;
    uint16_t *work; /* indexes of items to copy, in the order they came */
    kvtier_layout *layouts;
    kvtier_extent *extents; /* grows to the most that was ever used */
    size_t n_extents_max;
};

struct kvt_op_list {
    struct kvt_client_op *head, *tail;
};

enum kvt_client_ns_state { KVT_NS_UNSENT, KVT_NS_SENT, KVT_NS_OPEN, KVT_NS_REFUSED };

struct kvt_client_ns { /* of one connection */
    enum kvt_client_ns_state state;
    int32_t status;
    uint32_t handle;
};

enum kvt_conn_state {
    KVT_CONN_DOWN,  /* no socket; next try at retry_ns */
    KVT_CONN_HELLO, /* WELCOME awaited until hello_deadline_ns */
    KVT_CONN_READY,
    KVT_CONN_BROKEN, /* to be closed by the library thread */
};

struct kvt_conn {
    const char *name;
    int fd;
    enum kvt_conn_state state;
    bool tx_blocked; /* the socket is full; the library thread waits for POLLOUT */
    bool is_stalled; /* an answer that needs no disk is overdue, and nothing came since */
    uint64_t retry_ns, backoff_ns, hello_deadline_ns;
    uint64_t incarnation;
    uint32_t n_open, n_open_max; /* data: ops open at the agent */
    uint32_t n_ns_unsent;
    struct kvt_op_list queue; /* not sent yet */
    uint32_t n_ends_pending;  /* data: ops that are over, of which the agent was not told yet */
    struct kvt_client_ns ns[KVT_CLIENT_NS_MAX];
};

struct kvt_worker { /* its fields are the owner's while a job is under way */
    struct kvt_session *session;
    pthread_t thread;
    enum kvt_work_kind kind;
    struct kvt_client_op *op;
    uint64_t yield_ns; /* copies give way from then on */
    uint64_t rest_ns;  /* when the last job ended */
    bool tx_pending;   /* tx holds a COMMIT for op that the socket had no room for */
    uint32_t n;
    uint16_t items[KVT_BATCH_MAX];
    int32_t results[KVT_BATCH_MAX]; /* statuses, or KVT_ITEM_CUT */
    _Alignas(8) unsigned char tx[KVT_WIRE_BYTES_MAX];
};

struct kvt_work { /* of one kind */
    pthread_cond_t cond;
    struct kvt_client_op *head, *tail; /* ops with items to copy */
};

struct kvt_waiter { /* on the stack of a thread that waits for an answer; in a list */
    struct kvt_waiter *next;
    uint64_t id;
    bool is_done;
    int status;
    uint64_t *values;
    uint32_t n_values;
};

struct kvt_session {
    pthread_mutex_t lock;
    pthread_cond_t cond;      /* completions, leader gone, connection up or down, op over */
    volatile char *is_parent; /* a page that reads zero after fork() */
    char socket_path[108];
    char client_name[48];
    uint32_t spin_us;
    bool closing;
    bool version_refused; /* the last attempt met an agent of another version */
    struct kvt_error error;

    struct kvt_conn control, data;
    struct kvt_arena arena; /* read by copies; changed only while none is under way */
    const struct kvt_copy_ops *copy;
    uint32_t n_jobs; /* under way */

    int epoll_fd; /* what kvt_event_fd() gives: event_fd and the control socket */
    int event_fd; /* readable while `done` is not empty */
    int wake_fd;  /* wakes the library thread */
    int timer_fd; /* likewise, when an op may have to give up */
    uint64_t timer_ns;
    bool event_is_set;
    bool event_deferred; /* the thread that holds the lock will look at `done` itself */

    uint32_t n_slots;
    struct kvt_client_op *slots;
    struct kvt_client_op *free;
    struct kvt_op_list done;
    _Atomic uint32_t *n_done;    /* written under the lock; spinning threads read it without */
    _Atomic uint32_t own_n_done; /* where the caller has no word for it */
    struct kvt_work work[KVT_WORK_KINDS];

    bool has_leader;      /* a thread waits for all, and receives without the lock */
    bool leads_socket;    /* from the control socket; false: there was none when it began */
    uint64_t answered_ns; /* when a wait ended last */
    unsigned spin_credit; /* spent by spins in vain, earned by others */
    unsigned n_skipped;   /* spins not tried for want of credit */
    struct kvt_waiter *waiters;
    uint64_t next_waiter_id;
    _Alignas(8) unsigned char control_rx[8192]; /* the leader's */

    uint32_t n_ns;
    struct kvt_ns_desc *ns_descs;

    bool cuda_begun; /* somebody is attaching, or has */
    struct kvt_cuda *cuda;
    uint64_t slab_bytes; /* of the mapped arena */

    uint32_t n_workers;
    struct kvt_worker *workers; /* [0] is the library thread; room for those of a GPU */
    _Alignas(8) unsigned char data_rx[KVT_WIRE_BYTES_MAX + 8]; /* the library thread's */
};

/* op.c: slots, completions, the end of an op */
struct kvt_client_op *kvt_op_get_locked(struct kvt_session *s);
void kvt_op_put_locked(struct kvt_session *s, struct kvt_client_op *op);
struct kvt_client_op *kvt_op_find_locked(struct kvt_session *s, uint64_t id);
void kvt_op_submit_locked(struct kvt_session *s, struct kvt_client_op *op);
void kvt_op_end_send_locked(struct kvt_session *s, struct kvt_client_op *op);
/**
 * Whether the agent may be told later that loads are over: while there is more to copy. Being told
 * wakes it, as a rule on the core of the thread that copies, which then waits for it.
 */
bool kvt_ends_wait_locked(const struct kvt_session *s);
void kvt_ends_send_locked(struct kvt_session *s); /* unless they wait */
void kvt_op_finish_locked(struct kvt_session *s, struct kvt_client_op *op, int status);
/* End an op soon: now, or when the copies under way have noticed. */
void kvt_op_stop_locked(struct kvt_session *s, struct kvt_client_op *op, int status);
void kvt_op_item_over(struct kvt_client_op *op, uint32_t index, int32_t status);
void kvt_ops_expire_locked(struct kvt_session *s);
uint32_t kvt_done_take_locked(struct kvt_session *s, kvtier_completion *out, uint32_t n_max);
void kvt_event_sync_locked(struct kvt_session *s);
void kvt_timer_arm_locked(struct kvt_session *s, uint64_t when_ns);
void kvt_list_push(struct kvt_op_list *list, struct kvt_client_op *op);
void kvt_list_remove(struct kvt_op_list *list, struct kvt_client_op *op);
void kvt_ready_push_locked(struct kvt_session *s, struct kvt_client_op *op);

/* conn.c */
void kvt_session_error_locked(struct kvt_session *s, enum kvt_status status, const char *format,
                              ...) __attribute__((format(printf, 3, 4)));
void kvt_session_wake(struct kvt_session *s);
void kvt_conn_start_locked(struct kvt_session *s, struct kvt_conn *c);
void kvt_conn_welcome(struct kvt_session *s, struct kvt_conn *c);
void kvt_conn_break_locked(struct kvt_session *s, struct kvt_conn *c, enum kvt_status status,
                           const char *what);
void kvt_conn_close_locked(struct kvt_session *s, struct kvt_conn *c);
/** @return KVT_OK, KVT_ERR_AGAIN (full: tx_blocked), KVT_ERR_UNREACH (now broken). */
enum kvt_status kvt_conn_send_locked(struct kvt_session *s, struct kvt_conn *c,
                                     const struct iovec *iov, int n_iov) KVT_MUST_CHECK;
void kvt_conn_pump_locked(struct kvt_session *s, struct kvt_conn *c);
/** @return false: the message is none. */
bool kvt_conn_ns_open_r_locked(struct kvt_session *s, struct kvt_conn *c, const void *msg);

/* control.c */
void kvt_control_receive(struct kvt_session *s); /* as leader, without the lock */

/* data.c */
void kvt_data_receive(struct kvt_session *s); /* library thread, without the lock */
bool kvt_job_take_locked(struct kvt_session *s, struct kvt_worker *w);
void kvt_job_run(struct kvt_worker *w);
void kvt_job_done_locked(struct kvt_session *s, struct kvt_worker *w);
void kvt_job_flush_locked(struct kvt_session *s);

/* cuda.c, or cuda_none.c */
/**
 * Calling thread: check that the op's memory is the GPU's, and note what its copies come after.
 * @return KVTIER_OK, ERR_INVAL, ERR_NOTSUP, ERR_IO; the session's error says why.
 */
int kvt_cuda_prepare(struct kvt_session *s, struct kvt_client_op *op, void *stream);
void kvt_cuda_job(struct kvt_worker *w, uint64_t *sums);  /* fills w->results */
void kvt_cuda_mapped_locked(struct kvt_session *s);       /* s->cuda is there, and the arena */
void kvt_cuda_unmap(struct kvt_session *s);               /* the arena is about to go */
void kvt_cuda_free(struct kvt_session *s, bool is_child); /* threads are gone, arena unmapped */

/* session.c */
/* Start the thread of workers[index], signals blocked. */
bool kvt_worker_start(struct kvt_session *s, uint32_t index, void *(*run)(void *arg),
                      const char *name);

/* thread.c */
void kvt_copier_loop(struct kvt_worker *w); /* until the session closes */
void *kvt_library_main(void *arg);          /* of workers[0] */
void *kvt_copier_main(void *arg);           /* of the others */

#endif
