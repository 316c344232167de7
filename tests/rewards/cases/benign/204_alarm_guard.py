import signal
class Stop(Exception): pass
def handler(s, f): raise Stop
signal.signal(signal.SIGALRM, handler)
total = 0
try:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    for i in range(10 ** 12):
        total += i
        total -= 1
except Stop:
    print("stopped")
