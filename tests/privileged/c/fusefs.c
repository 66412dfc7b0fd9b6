/* A FUSE file system with one program in it, whose server can stop answering (threat B13).
 *
 *   fusefs DIR PROGRAM     (root) mounts over DIR with allow_other; DIR/bin is PROGRAM: `mounted`
 *
 * "stall": no request is answered any more; "resume": all are again; end of input: unmounts and ends.
 */
#include "common.h"
#include <linux/fuse.h>
#include <sys/uio.h>

static int device;
static volatile int stalled;
static char *image;
static size_t image_size;

static void reply(uint64_t unique, int error, const void *body, size_t n) {
    struct fuse_out_header head = {.len = sizeof head + n, .error = error, .unique = unique};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)body, n}};
    if (writev(device, parts, n ? 2 : 1) < 0 && errno != ENOENT) say("reply %s", strerror(errno));
}

static struct fuse_attr attributes(uint64_t node) {
    struct fuse_attr a = {.ino = node, .nlink = 1, .blksize = 4096};
    a.mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0755;
    if (node != 1) { a.size = image_size; a.blocks = (image_size + 511) / 512; }
    return a;
}

static void serve(struct fuse_in_header *head, void *body) {
    switch (head->opcode) {
    case FUSE_INIT: {
        struct fuse_init_in *in = body;
        struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = 31, .max_readahead = in->max_readahead,
                                    .max_write = 65536};
        reply(head->unique, 0, &out, sizeof out);
        break;
    }
    case FUSE_LOOKUP: {
        struct fuse_entry_out out = {.nodeid = 2, .attr = attributes(2)};
        if (strcmp(body, "bin")) reply(head->unique, -ENOENT, NULL, 0);
        else reply(head->unique, 0, &out, sizeof out);
        break;
    }
    case FUSE_GETATTR: {
        struct fuse_attr_out out = {.attr = attributes(head->nodeid)};
        reply(head->unique, 0, &out, sizeof out);
        break;
    }
    case FUSE_OPEN:
    case FUSE_OPENDIR: {
        struct fuse_open_out out = {.fh = 1};
        reply(head->unique, 0, &out, sizeof out);
        break;
    }
    case FUSE_READ: {
        struct fuse_read_in *in = body;
        size_t left = in->offset < image_size ? image_size - in->offset : 0;
        reply(head->unique, 0, image + in->offset, left < in->size ? left : in->size);
        break;
    }
    case FUSE_STATFS: {
        struct fuse_statfs_out out = {0};
        reply(head->unique, 0, &out, sizeof out);
        break;
    }
    case FUSE_FLUSH: case FUSE_RELEASE: case FUSE_RELEASEDIR: case FUSE_ACCESS:
        reply(head->unique, 0, NULL, 0);
        break;
    case FUSE_FORGET: case FUSE_BATCH_FORGET: case FUSE_INTERRUPT:
        break;
    default:
        reply(head->unique, -ENOSYS, NULL, 0);
    }
}

static void *server(void *unused) {
    static char buffer[1 << 18];
    (void)unused;
    for (;;) {
        ssize_t n = read(device, buffer, sizeof buffer);
        if (n <= 0) {
            if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT)) continue;
            return NULL; /* unmounted */
        }
        while (stalled) sleep_ms(5);
        serve((void *)buffer, buffer + sizeof(struct fuse_in_header));
    }
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    die_with_parent();
    int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
    struct stat stat;
    if (fd < 0 || fstat(fd, &stat)) die(argv[2]);
    image_size = stat.st_size;
    image = malloc(image_size);
    for (size_t at = 0; at < image_size;) {
        ssize_t n = read(fd, image + at, image_size - at);
        if (n <= 0) die("read");
        at += n;
    }
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) die("/dev/fuse");
    char options[128];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    if (mount("mayfly-test", argv[1], "fuse.mayfly-test", MS_NOSUID | MS_NODEV, options)) die("mount");
    pthread_t thread;
    pthread_create(&thread, NULL, server, NULL);
    say("mounted");
    char line[32];
    while (wait_line(line, sizeof line)) {
        stalled = !strcmp(line, "stall");
        say(stalled ? "stalled" : "resumed");
    }
    stalled = 0;
    umount2(argv[1], MNT_DETACH);
    return 0;
}
