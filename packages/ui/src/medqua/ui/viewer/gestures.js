// Mouse, pen and touch: one finger or button does what the tool says, two fingers pinch and move.

/** Attach to a viewer's stage; `tool()` gives the chosen tool. */
export function attachGestures(viewer, tool) {
  const { stage } = viewer.parts;
  const pointers = new Map();
  let action = null;
  let ruler = null;

  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  stage.addEventListener("pointerdown", (event) => {
    if (!viewer.study) return;
    stage.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    action = { 1: "pan", 2: "zoom" }[event.button] ?? (event.shiftKey ? "pan" : tool());
    if (pointers.size > 1 && ruler) viewer.rulers.splice(viewer.rulers.indexOf(ruler), 1);
    ruler = null;
    if (action === "ruler" && pointers.size === 1) {
      const at = viewer.imagePoint(event);
      viewer.rulers.push((ruler = { from: at, to: at }));
    }
    viewer.pointer = viewer.imagePoint(event);
    viewer.schedule();
    event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    if (!viewer.study || !viewer.matrix) return;
    const before = pointers.get(event.pointerId);
    viewer.pointer = viewer.imagePoint(event);
    viewer.schedule();
    if (!before) return;
    const others = [...pointers.values()].filter((p) => p.pointerId !== event.pointerId);
    const ratio = window.devicePixelRatio || 1;
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    pointers.set(event.pointerId, event);
    if (others.length) {
      pinch(viewer, others[0], before, event, ratio);
    } else if (action === "window") {
      viewer.dragWindow(dx * 3, dy * 3);
    } else if (action === "pan") {
      viewer.pan(dx * ratio, dy * ratio);
    } else if (action === "zoom") {
      viewer.zoom(Math.exp(-dy / 150));
    } else if (ruler) {
      ruler.to = viewer.imagePoint(event);
    }
  });
  const end = (event) => {
    pointers.delete(event.pointerId);
    if (ruler && Math.hypot(ruler.to[0] - ruler.from[0], ruler.to[1] - ruler.from[1]) < 1) {
      viewer.rulers.splice(viewer.rulers.indexOf(ruler), 1);
    }
    ruler = null;
    viewer.schedule();
  };
  stage.addEventListener("pointerup", end);
  stage.addEventListener("pointercancel", end);
  stage.addEventListener("pointerleave", () => {
    if (pointers.size || !viewer.study) return;
    viewer.pointer = null;
    viewer.schedule();
  });
  stage.addEventListener("wheel", (event) => {
    if (!viewer.study) return;
    event.preventDefault();
    if (viewer.study.frames > 1 && !event.ctrlKey) {
      viewer.setFrame(viewer.frame + Math.sign(event.deltaY));
    } else {
      viewer.zoom(Math.exp(-event.deltaY / 500), ...viewer.canvasPoint(event));
    }
  }, { passive: false });
}

function pinch(viewer, other, before, now, ratio) {
  const far = (p) => Math.max(Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY), 1);
  viewer.pan(((now.clientX - before.clientX) * ratio) / 2, ((now.clientY - before.clientY) * ratio) / 2);
  const middle = { clientX: (now.clientX + other.clientX) / 2, clientY: (now.clientY + other.clientY) / 2 };
  viewer.zoom(far(now) / far(before), ...viewer.canvasPoint(middle));
}
