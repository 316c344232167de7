import mmap
print(sum(map(int, mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:].split())))
