/* A load generator for one POST address: each line of a file is the body of one request, sent once.
 *
 *   load HOST PORT PATH KEY FILE CONNECTIONS SECONDS RATE
 *
 * PATH - : each line is one or more whole requests, \x02 between them and \x01 for each line end, which one connection
 * sends one after another, each when the one before was answered with 2xx. KEY is not used then.
 *
 * RATE 0: each connection sends its next request when it has the answer to the last (closed loop). RATE n: requests
 * are due n a second, whatever the answers do, and latency counts from when a request was due, not from when a
 * connection was free to send it (open loop). One line of JSON: how many, how fast, which statuses, how late. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_MOST = 65536, REQUEST_MOST = 8192 };

struct connection {
    int socket, busy;
    double due;
    size_t got, out, sent;
    const char *rest, *end; /* of a line of several requests */
    char answer[ANSWER_MOST], request[REQUEST_MOST];
};

static const char *path, *key, *host, *next_line, *end_of_lines;
static double *latencies;
static size_t answered, room, by_status[600], failed;
static int poller;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void flush(struct connection *c) {
    while (c->sent < c->out) {
        ssize_t n = write(c->socket, c->request + c->sent, c->out - c->sent);
        if (n < 0 && errno == EAGAIN) continue;
        if (n <= 0) die("write");
        c->sent += n;
    }
}

/* The next of a line of several requests. */
static void go_on(struct connection *c, double due) {
    const char *stop = memchr(c->rest, 2, c->end - c->rest);
    if (!stop) stop = c->end;
    size_t length = stop - c->rest;
    if (length > REQUEST_MOST) die("a request is too long");
    for (size_t i = 0; i < length; i++) c->request[i] = c->rest[i] == 1 ? '\n' : c->rest[i];
    c->rest = stop < c->end ? stop + 1 : 0;
    c->out = length;
    c->sent = c->got = 0;
    c->busy = 1;
    c->due = due;
    flush(c);
}

/* 0 where no line is left. */
static int start(struct connection *c, double due) {
    if (next_line >= end_of_lines) return 0;
    const char *stop = memchr(next_line, '\n', end_of_lines - next_line);
    if (!stop) stop = end_of_lines;
    size_t length = stop - next_line;
    c->rest = 0;
    if (path[0] == '-') {
        c->rest = next_line, c->end = stop;
        next_line = stop + 1;
        go_on(c, due);
        return 1;
    }
    int head = snprintf(c->request, REQUEST_MOST,
                        "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n"
                        "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n", path, host, key, length);
    if (head + length > REQUEST_MOST) die("a line is too long");
    memcpy(c->request + head, next_line, length);
    c->out = head + length;
    c->sent = c->got = 0;
    c->busy = 1;
    c->due = due;
    next_line = stop + 1;
    flush(c);
    return 1;
}

/* Whether the answer is whole. */
static int took(struct connection *c) {
    ssize_t n = read(c->socket, c->answer + c->got, ANSWER_MOST - 1 - c->got);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) {
        failed++;
        close(c->socket);
        c->socket = -1;
        c->busy = 0;
        return 0;
    }
    c->got += n;
    c->answer[c->got] = 0;
    char *body = strstr(c->answer, "\r\n\r\n");
    if (!body) return 0;
    char *told = strcasestr(c->answer, "\r\ncontent-length:");
    if (!told || told > body) die("an answer without Content-Length");
    if ((size_t)(body + 4 - c->answer) + strtoul(told + 17, 0, 10) > c->got) return 0;
    int status = atoi(c->answer + 9) % 600;
    by_status[status]++;
    if (status / 100 != 2) c->rest = 0;
    if (answered == room) latencies = realloc(latencies, sizeof(double) * (room = room ? room * 2 : 65536));
    latencies[answered++] = now() - c->due;
    c->busy = 0;
    return 1;
}

int main(int count, char **told) {
    if (count != 9) {
        fprintf(stderr, "load HOST PORT PATH KEY FILE CONNECTIONS SECONDS RATE\n");
        return 2;
    }
    host = told[1], path = told[3], key = told[4];
    int connections = atoi(told[6]);
    double seconds = atof(told[7]), rate = atof(told[8]);
    int file = open(told[5], O_RDONLY);
    struct stat about;
    if (file < 0 || fstat(file, &about) < 0) die(told[5]);
    next_line = mmap(0, about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (next_line == MAP_FAILED) die("mmap");
    end_of_lines = next_line + about.st_size;

    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(told[2]))};
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1) die(host);
    poller = epoll_create1(0);
    struct connection *all = calloc(connections, sizeof *all);
    for (int i = 0; i < connections; i++) {
        int one = 1;
        all[i].socket = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(all[i].socket, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
        setsockopt(all[i].socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(all[i].socket, F_SETFL, O_NONBLOCK);
        struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poller, EPOLL_CTL_ADD, all[i].socket, &wanted);
    }
    double began = now(), last = began, following = began;
    int left = 1, running = 0;
    if (rate == 0)
        for (int i = 0; i < connections && left; i++) running += left = start(&all[i], now());
    while (1) {
        double at = now();
        int over = at - began >= seconds;
        if (over || !left) {
            if (!running || at - began > seconds + 30) break;
        } else if (rate > 0) {
            for (int i = 0; i < connections && left && following <= at; i++)
                if (all[i].socket >= 0 && !all[i].busy) {
                    if (!(left = start(&all[i], following))) break;
                    running++;
                    following += 1 / rate;
                }
        }
        struct epoll_event events[256];
        int wait = rate > 0 ? 1 : 100;
        int n = epoll_wait(poller, events, 256, wait);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->socket < 0) continue;
            int was = c->busy;
            if (took(c)) {
                last = now();
                if (c->rest) {
                    go_on(c, now());
                    continue;
                }
                running--;
                if (rate == 0 && now() - began < seconds && left && (left = start(c, now()))) running++;
            } else if (was && !c->busy)
                running--;
        }
    }
    qsort(latencies, answered, sizeof(double), by_size);
    double took_seconds = last - began;
    printf("{\"answered\":%zu,\"failed\":%zu,\"seconds\":%.3f,\"per_second\":%.1f", answered, failed, took_seconds,
           answered ? answered / took_seconds : 0.0);
    if (answered)
        printf(",\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"most_ms\":%.3f", latencies[answered / 2] * 1e3,
               latencies[answered * 99 / 100] * 1e3, latencies[answered - 1] * 1e3);
    printf(",\"statuses\":{");
    for (int i = 0, first = 1; i < 600; i++)
        if (by_status[i]) printf("%s\"%d\":%zu", first ? "" : ",", i, by_status[i]), first = 0;
    printf("}}\n");
    return 0;
}
