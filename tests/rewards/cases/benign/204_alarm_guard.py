import signal
class Stop(Exception): pass
def handler(s, f): raise Stop
signal.signal(signal.SIGALRM, handler); signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    while True: total = sum(range(100))
except Stop: print("stopped")
