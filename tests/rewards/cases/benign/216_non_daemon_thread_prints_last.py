import threading, time
def late(): time.sleep(0.05); print("thread")
threading.Thread(target=late).start()
print("main")
