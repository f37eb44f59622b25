"""x"""
import time
def test_a(released):
    print(released)
def test_b(world):
    t=time.time()
    r=world.run("release")
    print(time.time()-t, r.success)
    t=time.time(); print(world.tick("scorer_backfill_sensor")); print(time.time()-t)
