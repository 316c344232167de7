import sys
n = int(input())
print(n, sum(len(line.split()) for line in sys.stdin))
