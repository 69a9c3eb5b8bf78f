/* The floor: what this machine needs to hand an observation to another process and a chunk back, in C.
 *
 * Two processes, one shared mapping, two POSIX semaphores with blocking waits. The client copies an observation into
 * the mapping and posts; the server copies a chunk into it and posts; the client copies the chunk out. Nothing is
 * checked, described or protected: a transport does more than this, and is measured as a multiple of it.
 *
 *     cc -O2 -o floor floor.c -pthread
 *     ./floor OBSERVATION_BYTES CHUNK_BYTES WARMUP EXCHANGES [CLIENT_PROCESSOR SERVER_PROCESSOR]
 *
 * Prints the duration of every exchange after the warm-up, in nanoseconds, one a line.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct shared {
    _Alignas(64) sem_t observation_ready;
    _Alignas(64) sem_t chunk_ready;
    _Alignas(4096) unsigned char data[];
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void wait_for(sem_t *semaphore) {
    while (sem_wait(semaphore) != 0) {
    }
}

static void stay_on(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        perror("sched_setaffinity");
        exit(1);
    }
}

static void *reserve(size_t size, int flags) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    memset(memory, 1, size);
    return memory;
}

static void serve(struct shared *shared, size_t observation_bytes, size_t chunk_bytes, long exchanges) {
    unsigned char *chunk = reserve(chunk_bytes, MAP_PRIVATE);
    for (long i = 0; i < exchanges; i++) {
        wait_for(&shared->observation_ready);
        memcpy(shared->data + observation_bytes, chunk, chunk_bytes);
        sem_post(&shared->chunk_ready);
    }
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 7) {
        fprintf(stderr, "usage: %s OBSERVATION_BYTES CHUNK_BYTES WARMUP EXCHANGES [CLIENT_PROCESSOR SERVER_PROCESSOR]\n",
                argv[0]);
        return 2;
    }
    size_t observation_bytes = strtoull(argv[1], NULL, 10), chunk_bytes = strtoull(argv[2], NULL, 10);
    long warmup = atol(argv[3]), exchanges = atol(argv[4]);
    struct shared *shared = reserve(sizeof(struct shared) + observation_bytes + chunk_bytes, MAP_SHARED);
    unsigned char *observation = reserve(observation_bytes, MAP_PRIVATE), *chunk = reserve(chunk_bytes, MAP_PRIVATE);
    int64_t *durations_ns = reserve((size_t)exchanges * sizeof(int64_t), MAP_PRIVATE);
    sem_init(&shared->observation_ready, 1, 0);
    sem_init(&shared->chunk_ready, 1, 0);

    pid_t server = fork();
    if (server == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (argc == 7) {
            stay_on(atoi(argv[6]));
        }
        serve(shared, observation_bytes, chunk_bytes, warmup + exchanges);
        return 0;
    }
    if (argc == 7) {
        stay_on(atoi(argv[5]));
    }
    for (long i = -warmup; i < exchanges; i++) {
        int64_t start_ns = now_ns();
        memcpy(shared->data, observation, observation_bytes);
        sem_post(&shared->observation_ready);
        wait_for(&shared->chunk_ready);
        memcpy(chunk, shared->data + observation_bytes, chunk_bytes);
        if (i >= 0) {
            durations_ns[i] = now_ns() - start_ns;
        }
    }
    waitpid(server, NULL, 0);
    for (long i = 0; i < exchanges; i++) {
        printf("%lld\n", (long long)durations_ns[i]);
    }
    return 0;
}
