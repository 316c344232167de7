import fractions, decimal, statistics, difflib, zlib, hashlib, csv, calendar, secrets, unicodedata, ipaddress, uuid, zoneinfo, logging, sqlite3, ctypes
print(len(hashlib.sha256(b"").hexdigest()) == 64, statistics.mean([2, 4]) * 1.0, "".join(difflib.ndiff(["abc"], ["abc"])).strip())
