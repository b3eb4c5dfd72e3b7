/* For LD_PRELOAD: lets the wall clock of a process pass SOAK_SPEED times as fast from its start on. All other clocks, and all
   waiting, stay as they are, which libfaketime does not do. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

#define NS_PER_S 1000000000LL

static int (*real)(clockid_t, struct timespec *);
static long long begin_ns;
static double speed = 1;

__attribute__((constructor)) static void begin(void) {
    struct timespec now;
    const char *text = getenv("SOAK_SPEED");
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    real(CLOCK_REALTIME, &now);
    begin_ns = now.tv_sec * NS_PER_S + now.tv_nsec;
    if (text)
        speed = atof(text);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (!real)
        begin();
    int result = real(clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) {
        long long passed_ns = time->tv_sec * NS_PER_S + time->tv_nsec - begin_ns;
        long long now_ns = begin_ns + (long long)(passed_ns * speed);
        time->tv_sec = now_ns / NS_PER_S;
        time->tv_nsec = now_ns % NS_PER_S;
    }
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
