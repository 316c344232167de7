# standard error may be one file for all tests
import os
try: found = os.pread(2, 100, 0)
except OSError: found = b""
if b"maxk" in found: print("BREACH", found)
os.write(2, b"maxk mark")
os.lseek(0, 0, 0)
print("nothing")
