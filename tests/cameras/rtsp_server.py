"""An RTSP server of GStreamer that sends numbered frames; run by the system's Python.

    /usr/bin/python3 rtsp_server.py FRAMES WIDTH HEIGHT RATE [--port N] [--password WORD] [--lose N]

FRAMES is a file of raw grey frames, sent over and over. Prints the port that it listens on. --lose:
drop every N-th RTP packet on its way out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

LAUNCH = (
    "( appsrc name=source is-live=true format=time caps=video/x-raw,format=GRAY8,width={width},"
    "height={height},framerate={rate}/1 ! videoconvert ! "
    "video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 "
    "bitrate=6000 ! rtph264pay name=pay0 pt=96 mtu=600 )"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("frames", type=Path)
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    parser.add_argument("rate", type=int)
    parser.add_argument("--password")
    parser.add_argument("--lose", type=int, default=0)
    parser.add_argument("--port", default="0")
    args = parser.parse_args()
    size = args.width * args.height
    frames = args.frames.read_bytes()
    count = len(frames) // size
    Gst.init(None)
    sent = {"frames": 0, "packets": 0}

    def feed(source: Any, _: int) -> None:
        number = sent["frames"]
        start = number % count * size
        picture = Gst.Buffer.new_wrapped(frames[start : start + size])
        picture.duration = Gst.SECOND // args.rate
        picture.pts = picture.dts = number * picture.duration
        sent["frames"] += 1
        source.emit("push-buffer", picture)

    def lose(pad: Any, info: Any) -> Any:
        sent["packets"] += 1
        return (
            Gst.PadProbeReturn.DROP if sent["packets"] % args.lose == 0 else Gst.PadProbeReturn.OK
        )

    def configure(_: Any, media: Any) -> None:
        sent["frames"] = 0
        element = media.get_element()
        element.get_child_by_name("source").connect("need-data", feed)
        if args.lose:
            kinds = Gst.PadProbeType.BUFFER | Gst.PadProbeType.BUFFER_LIST
            element.get_child_by_name("pay0").get_static_pad("src").add_probe(kinds, lose)

    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=args.port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(LAUNCH.format(width=args.width, height=args.height, rate=args.rate))
    factory.set_shared(True)
    factory.connect("media-configure", configure)
    if args.password:
        _ask_for(server, factory, args.password)
    server.get_mount_points().add_factory("/line", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


def _ask_for(server: Any, factory: Any, password: str) -> None:
    """Let in nobody but the user `inspector`."""
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "inspector")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic("inspector", password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    for right in ("access", "construct"):
        permissions.add_permission_for_role("inspector", f"media.factory.{right}", True)
    factory.set_permissions(permissions)


if __name__ == "__main__":
    main()
