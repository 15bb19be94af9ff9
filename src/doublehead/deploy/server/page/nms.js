// Non-maximum suppression within each class, as the server does it.

function overlap([ax1, ay1, ax2, ay2], [bx1, by1, bx2, by2]) {
  const width = Math.max(0, Math.min(ax2, bx2) - Math.max(ax1, bx1));
  const height = Math.max(0, Math.min(ay2, by2) - Math.max(ay1, by1));
  const both = width * height;
  return both / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - both);
}

// Detections in falling order of score to those that overlap no better one of their class by more than `iou`.
export function suppress(detections, iou) {
  const kept = [];
  for (const found of detections) {
    const beaten = kept.some((better) => better.label === found.label && overlap(better.box, found.box) > iou);
    if (!beaten) kept.push(found);
  }
  return kept;
}
