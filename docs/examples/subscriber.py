"""Part verdicts of a line, none missed: python subscriber.py tcp://127.0.0.1:5601 mes.cursor"""

import sys
from pathlib import Path

from pipeline.subscriber import Missed, Subscriber

endpoint, cursor = sys.argv[1:3]
with Subscriber(endpoint, topics=["part/"], cursor=Path(cursor)) as stream:
    while True:
        event = stream.receive(timeout_ms=500)
        if event is None:
            if stream.silent_ms > 1000:
                print("silent", flush=True)
        elif isinstance(event, Missed):
            print("missed", event.after, event.upto, flush=True)
            stream.ack(event.seq)
        else:
            print(event.seq, event.label, event.reason, event.part_id, flush=True)
            stream.ack(event.seq)
