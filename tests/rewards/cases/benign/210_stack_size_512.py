import sys, threading
sys.setrecursionlimit(1 << 20); threading.stack_size(512 << 20)
def depth(n): return n and 1 + depth(n - 1)
t = threading.Thread(target=lambda: print(depth(100000))); t.start(); t.join()
