import sys
sys.setrecursionlimit(10 ** 6)
def depth(n): return n and 1 + depth(n - 1)
print(depth(50000))
