/* SPDX-License-Identifier: Apache-2.0 */
#include "store_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "kvt/util.h"

#define STORE_MAGIC    UINT64_C(0x3145524f5453564b) /* "KVSTORE1" */
#define STORE_VERSION  3
#define PAUSE_NS       (10 * 1000 * 1000)
#define LOCK_TRIES     500 /* pauses */
#define TRANSFER_TRIES 100

struct superblock { /* at offset 0, little-endian, one page */
    uint64_t magic;
    uint32_t version;
    uint32_t disk; /* its place among the disks of the store */
    uint8_t store_id[16];
    uint64_t slab_bytes;
    uint32_t first_slab;
    uint32_t n_slabs;
    uint8_t reserved[4040];
    uint64_t checksum; /* XXH3-64, seed 0, of all before it */
};
_Static_assert(sizeof(struct superblock) == KVT_PAGE_BYTES, "one page");

/* What was found on a disk while opening. */
struct disk {
    const char *path;
    int fd;
    int lock_fd;
    bool is_device;
    bool is_made; /* by this call: taken away again if opening fails */
    bool is_new;  /* no superblock yet */
    uint64_t bytes;
    struct superblock *block; /* a page that O_DIRECT can use */
};

static uint64_t superblock_checksum(const struct superblock *block)
{
    return XXH3_64bits(block, offsetof(struct superblock, checksum));
}

static void disk_close(struct disk *disk)
{
    if (disk->fd >= 0)
        close(disk->fd);
    if (disk->lock_fd >= 0)
        close(disk->lock_fd);
    disk->fd = disk->lock_fd = -1;
}

/*
 * Open and lock; an errno value. The lock is on a descriptor of its own, which no ring knows and
 * which therefore ends with its process. O_EXCL on a device: refused while it is mounted.
 */
static int disk_claim(struct disk *disk)
{
    int flags = O_RDWR | O_DIRECT | O_CLOEXEC;
    disk->fd = open(disk->path, flags);
    if (disk->fd < 0 && errno == ENOENT) {
        disk->fd = open(disk->path, flags | O_CREAT | O_EXCL, 0600);
        disk->is_made = disk->fd >= 0;
    }
    if (disk->fd < 0)
        return errno;
    disk->lock_fd = open(disk->path, O_RDONLY | O_CLOEXEC | (disk->is_device ? O_EXCL : 0));
    if (disk->lock_fd >= 0 && flock(disk->lock_fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    int cause = errno;
    disk_close(disk);
    return cause;
}

static void pause_short(void)
{
    (void)nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
}

/* A killed agent may still be on its way out. No event tells. */
static int disk_claim_wait(struct disk *disk)
{
    int cause = 0;
    for (unsigned n = 0; n < LOCK_TRIES; n++) {
        cause = disk_claim(disk);
        if (cause != EWOULDBLOCK && cause != EBUSY)
            return cause;
        pause_short();
    }
    return cause;
}

/*
 * The kernel takes the ring of a killed agent apart after that agent is gone, and its last
 * transfers end meanwhile. A second lock, on the descriptor that the ring holds, says when; a write
 * that lands later than that, on a slot used anew, would cost the chunk there. Taking a ring apart
 * was seen to last ten seconds on a busy machine, a transfer never, so that the wait is a short
 * one: what comes later still is found by verification, and is a miss.
 */
static void transfers_wait(const struct disk *disk)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
    for (unsigned n = 0; n < TRANSFER_TRIES; n++) {
        if (fcntl(disk->fd, F_OFD_SETLK, &lock) == 0 || (errno != EAGAIN && errno != EACCES))
            return;
        pause_short();
    }
}

static enum kvt_status disk_open(struct disk *disk, struct kvt_error *err)
{
    struct stat st;
    bool is_there = stat(disk->path, &st) == 0;
    if (is_there && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return kvt_error_set(err, KVT_ERR_INVAL,
                             "nvme: %s is neither a file nor a block device; check nvme.disks",
                             disk->path);
    disk->is_device = is_there && S_ISBLK(st.st_mode);
    int cause = disk_claim_wait(disk);
    if (cause == EWOULDBLOCK || cause == EBUSY)
        return kvt_error_set(err, KVT_ERR_BUSY,
                             "nvme: %s is in use by another agent, or mounted; stop that or choose "
                             "another path",
                             disk->path);
    if (cause == EINVAL)
        return kvt_error_set(err, KVT_ERR_NOTSUP,
                             "nvme: the file system of %s refuses O_DIRECT; choose another for "
                             "nvme.disks",
                             disk->path);
    if (cause != 0)
        return kvt_error_set(err, KVT_ERR_IO,
                             "nvme: cannot open and lock %s: %s; check path and permissions in "
                             "nvme.disks",
                             disk->path, strerror(cause));
    transfers_wait(disk);
    if (fstat(disk->fd, &st) == 0)
        disk->bytes = (uint64_t)st.st_size;
    if (disk->is_device && ioctl(disk->fd, BLKGETSIZE64, &disk->bytes) != 0)
        return kvt_error_set(err, KVT_ERR_IO, "nvme: cannot ask the size of %s: %s; check the disk",
                             disk->path, strerror(errno));
    return KVT_OK;
}

/* The first MiB, where others would have put their label; the superblock is its first page. */
static enum kvt_status disk_read_head(struct disk *disk, bool *is_blank_p, struct kvt_error *err)
{
    enum kvt_status status = KVT_OK;
    unsigned char *head = aligned_alloc(KVT_PAGE_BYTES, STORE_DATA_OFFSET);
    if (head == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "nvme: out of memory at start; free some");
    memset(head, 0, STORE_DATA_OFFSET);
    ssize_t n = pread(disk->fd, head, STORE_DATA_OFFSET, 0);
    if (n < 0) {
        status = kvt_error_set(err, KVT_ERR_IO, "nvme: cannot read %s: %s; check the disk",
                               disk->path, strerror(errno));
    } else {
        *is_blank_p = head[0] == 0 && memcmp(head, head + 1, STORE_DATA_OFFSET - 1) == 0;
        memcpy(disk->block, head, sizeof(*disk->block));
    }
    free(head);
    return status;
}

static enum kvt_status disk_recognise(struct disk *disk, unsigned number, uint64_t slab_bytes,
                                      struct kvt_error *err)
{
    bool is_blank = true;
    enum kvt_status status = disk_read_head(disk, &is_blank, err);
    if (status != KVT_OK)
        return status;
    const struct superblock *block = disk->block;
    disk->is_new = is_blank; /* made just now, or by an agent that ended before it was ready */
    if (is_blank)
        return KVT_OK;
    if (block->magic != STORE_MAGIC)
        return kvt_error_set(err, KVT_ERR_CORRUPT,
                             "nvme: %s holds something that is not a KVTier store; choose another "
                             "path, or erase its first MiB if it may be overwritten",
                             disk->path);
    if (block->version != STORE_VERSION)
        return kvt_error_set(err, KVT_ERR_VERSION,
                             "nvme: %s was written by store format %" PRIu32 ", this is %d; remove "
                             "the file to start empty",
                             disk->path, block->version, STORE_VERSION);
    if (block->checksum != superblock_checksum(block))
        return kvt_error_set(err, KVT_ERR_CORRUPT,
                             "nvme: the superblock of %s is damaged; remove the file to start "
                             "empty",
                             disk->path);
    if (block->slab_bytes != slab_bytes)
        return kvt_error_set(err, KVT_ERR_VERSION,
                             "nvme: %s has slabs of %" PRIu64 " bytes, configured are %" PRIu64
                             "; set nvme.slab_bytes back or remove the file to start empty",
                             disk->path, block->slab_bytes, slab_bytes);
    if (block->disk != number)
        return kvt_error_set(err, KVT_ERR_CORRUPT,
                             "nvme: %s is disk %" PRIu32 " of its store, configured as disk %u; "
                             "put the paths of nvme.disks back in order",
                             disk->path, block->disk, number);
    return KVT_OK;
}

/* One store, or disks of several thrown together? *id_p: that of the store, NULL when all is new.
 */
static enum kvt_status disks_agree(const struct disk *disks, unsigned n_disks, const uint8_t **id_p,
                                   struct kvt_error *err)
{
    const struct disk *first = NULL;
    for (unsigned i = 0; i < n_disks; i++) {
        if (disks[i].is_new)
            continue;
        if (first == NULL)
            first = &disks[i];
        else if (memcmp(first->block->store_id, disks[i].block->store_id, 16) != 0)
            return kvt_error_set(err, KVT_ERR_CORRUPT,
                                 "nvme: %s and %s belong to different stores; remove the one that "
                                 "is not wanted",
                                 first->path, disks[i].path);
    }
    *id_p = first == NULL ? NULL : first->block->store_id;
    return KVT_OK;
}

/* Asked first: an allocation that fails takes all there is for a moment, from everybody. */
static bool disk_has_room(const struct disk *disk, uint64_t bytes)
{
    struct statvfs vfs;
    struct stat st;
    if (fstat(disk->fd, &st) != 0 || fstatvfs(disk->fd, &vfs) != 0)
        return true;
    uint64_t held = (uint64_t)st.st_blocks * 512;
    return bytes <= held || (bytes - held) / vfs.f_frsize <= vfs.f_bavail;
}

static enum kvt_status disk_allocate(struct disk *disk, uint64_t bytes, struct kvt_error *err)
{
    if (disk->is_device) {
        if (disk->bytes >= bytes)
            return KVT_OK;
        return kvt_error_set(err, KVT_ERR_NOSPACE,
                             "nvme: %s has %" PRIu64 " bytes, %" PRIu64
                             " are configured; lower nvme.disks.*.bytes",
                             disk->path, disk->bytes, bytes);
    }
    bool has_room = disk_has_room(disk, bytes);
    int cause = has_room ? 0 : ENOSPC;
    while (cause == 0 && fallocate(disk->fd, 0, 0, (off_t)bytes) != 0) {
        if (errno != EINTR)
            cause = errno;
    }
    if (cause != 0) {
        if (has_room)
            (void)!ftruncate(disk->fd, (off_t)disk->bytes); /* give back what was taken */
        return kvt_error_set(err,
                             cause == ENOSPC || cause == EDQUOT || cause == EFBIG
                                 ? KVT_ERR_NOSPACE
                                 : kvt_status_from_errno(cause),
                             "nvme: cannot preallocate %" PRIu64
                             " bytes for %s: %s; free space or lower nvme.disks.*.bytes",
                             bytes, disk->path, strerror(cause));
    }
    /* The capacity is a hard cap: a store that was larger shrinks. */
    if (disk->bytes > bytes && ftruncate(disk->fd, (off_t)bytes) != 0)
        return kvt_error_set(err, KVT_ERR_IO, "nvme: cannot shrink %s: %s; check the disk",
                             disk->path, strerror(errno));
    return KVT_OK;
}

static enum kvt_status disk_write_superblock(struct disk *disk, struct kvt_error *err)
{
    if (disk->block->magic != 0)
        disk->block->checksum = superblock_checksum(disk->block);
    ssize_t n = pwrite(disk->fd, disk->block, sizeof(*disk->block), 0);
    if (n == (ssize_t)sizeof(*disk->block) && fdatasync(disk->fd) == 0)
        return KVT_OK;
    return kvt_error_set(err, KVT_ERR_IO,
                         "nvme: cannot write the superblock of %s: %s; check the "
                         "disk",
                         disk->path, n >= 0 ? "short write" : strerror(errno));
}

/*
 * All disks are known to be fine: make them what the configuration says. Slabs that moved to other
 * numbers (another capacity of a disk before) make it a new store, whatever the slots hold.
 */
static enum kvt_status disks_settle(struct disk *disks, const struct kvt_nvme_config *config,
                                    const uint8_t *old_id, struct store_files *files,
                                    uint8_t store_id[16], struct kvt_error *err)
{
    uint8_t id[16];
    bool is_moved = old_id == NULL;
    for (unsigned i = 0; i < config->n_disks; i++) {
        if (!disks[i].is_new)
            is_moved |= disks[i].block->first_slab != files->first_slab[i];
        enum kvt_status status = disk_allocate(
            &disks[i], STORE_DATA_OFFSET + files->n_slabs[i] * config->slab_bytes, err);
        if (status != KVT_OK)
            return status;
    }
    if (!is_moved)
        memcpy(id, old_id, sizeof(id));
    else if (getrandom(id, sizeof(id), 0) != (ssize_t)sizeof(id))
        return kvt_error_set(err, KVT_ERR_IO,
                             "nvme: no random bytes for a store id: %s; check the "
                             "kernel",
                             strerror(errno));
    /* Blank first: whoever is killed between two of them leaves disks that join the rest, never
     * disks of two stores. */
    for (unsigned i = 0; is_moved && i < config->n_disks; i++) {
        memset(disks[i].block, 0, sizeof(*disks[i].block));
        enum kvt_status status = disks[i].is_new ? KVT_OK : disk_write_superblock(&disks[i], err);
        if (status != KVT_OK)
            return status;
    }
    for (unsigned i = 0; i < config->n_disks; i++) {
        struct superblock *block = disks[i].block;
        if (!disks[i].is_new && !is_moved && block->n_slabs == files->n_slabs[i])
            continue;
        memset(block, 0, sizeof(*block));
        block->magic = STORE_MAGIC;
        block->version = STORE_VERSION;
        block->disk = i;
        memcpy(block->store_id, id, sizeof(id));
        block->slab_bytes = config->slab_bytes;
        block->first_slab = files->first_slab[i];
        block->n_slabs = files->n_slabs[i];
        enum kvt_status status = disk_write_superblock(&disks[i], err);
        if (status != KVT_OK)
            return status;
        disks[i].is_made = false; /* it is a store now, whole in itself */
    }
    memcpy(store_id, id, sizeof(id));
    return KVT_OK;
}

static enum kvt_status layout_of(const struct kvt_nvme_config *config, struct store_files *files,
                                 struct kvt_error *err)
{
    if (config->n_disks == 0 || config->n_disks > KVT_DISKS_MAX)
        return kvt_error_set(err, KVT_ERR_INVAL,
                             "nvme: %u disks, 1 to %d are possible; check "
                             "nvme.disks",
                             config->n_disks, KVT_DISKS_MAX);
    if (config->slab_bytes == 0 || config->slab_bytes % KVT_PAGE_BYTES != 0)
        return kvt_error_set(err, KVT_ERR_INVAL,
                             "nvme: slab size %" PRIu64 " is not a multiple of "
                             "4096; check nvme.slab_bytes",
                             config->slab_bytes);
    files->n_disks = config->n_disks;
    for (unsigned i = 0; i < config->n_disks; i++) {
        const struct kvt_disk_config *disk = &config->disks[i];
        uint64_t usable = disk->capacity_bytes - KVT_MIN(disk->capacity_bytes, STORE_DATA_OFFSET);
        uint64_t n_slabs = usable / config->slab_bytes;
        if (n_slabs == 0 || files->n_slabs_all + n_slabs > UINT32_MAX / 2 ||
            disk->capacity_bytes > INT64_MAX)
            return kvt_error_set(err, KVT_ERR_INVAL,
                                 "nvme: %" PRIu64 " bytes for %s do not make a number of slabs of "
                                 "%" PRIu64 "; check nvme.disks.*.bytes",
                                 disk->capacity_bytes, disk->path, config->slab_bytes);
        files->first_slab[i] = files->n_slabs_all;
        files->n_slabs[i] = (uint32_t)n_slabs;
        files->n_slabs_all += (uint32_t)n_slabs;
    }
    return KVT_OK;
}

enum kvt_status store_files_open(const struct kvt_nvme_config *config, uint8_t store_id[16],
                                 struct store_files *files, struct kvt_error *err)
{
    struct disk disks[KVT_DISKS_MAX] = {0};
    const uint8_t *old_id = NULL;
    memset(files, 0, sizeof(*files));
    enum kvt_status status = layout_of(config, files, err);
    if (status != KVT_OK) {
        files->n_disks = 0;
        return status;
    }
    struct superblock *blocks =
        aligned_alloc(KVT_PAGE_BYTES, KVT_DISKS_MAX * sizeof(struct superblock));
    if (blocks == NULL) {
        files->n_disks = 0;
        return kvt_error_set(err, KVT_ERR_NOMEM, "nvme: out of memory at start; free some");
    }
    for (unsigned i = 0; i < config->n_disks; i++)
        disks[i] = (struct disk){
            .path = config->disks[i].path, .fd = -1, .lock_fd = -1, .block = &blocks[i]};
    /* Look at all before changing any: a store that is refused stays as it is. */
    for (unsigned i = 0; status == KVT_OK && i < config->n_disks; i++) {
        status = disk_open(&disks[i], err);
        if (status == KVT_OK)
            status = disk_recognise(&disks[i], i, config->slab_bytes, err);
    }
    if (status == KVT_OK)
        status = disks_agree(disks, config->n_disks, &old_id, err);
    if (status == KVT_OK)
        status = disks_settle(disks, config, old_id, files, store_id, err);
    for (unsigned i = 0; i < config->n_disks; i++) {
        files->fds[i] = disks[i].fd;
        files->lock_fds[i] = disks[i].lock_fd;
        if (status != KVT_OK && disks[i].is_made)
            unlink(disks[i].path);
    }
    if (status != KVT_OK)
        store_files_close(files);
    free(blocks);
    return status;
}

void store_files_close(struct store_files *files)
{
    struct flock unlock = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_len = 1};
    for (unsigned i = 0; i < files->n_disks; i++) {
        if (files->fds[i] >= 0) {
            /* No transfer is left, but the ring may hold the file a little longer. */
            (void)fcntl(files->fds[i], F_OFD_SETLK, &unlock);
            close(files->fds[i]);
        }
        if (files->lock_fds[i] >= 0)
            close(files->lock_fds[i]);
    }
    files->n_disks = 0;
}
