class Goodbye:
    def __del__(self): print("last")
keep = Goodbye()
print("first")
