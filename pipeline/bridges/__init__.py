"""What tells a PLC of parts: one process for each bridge, a subscriber of part verdicts alone.

core.py     what a PLC sees, and why a pass can never be an old one: no sockets, no threads
desk.py     the core with its sockets: the line's stream on one side, triggers on the other
modbus.py   Modbus TCP server     }
opcua.py    OPC UA server         } the same fields in three protocols; docs/plc.md
mqtt.py     MQTT client           }
run.py      which of them a configuration names, and `python -m pipeline.bridges RUN_DIR NAME`
"""
