// Small charts as SVG paths. Pure.

/**
 * Paths of a line over [0, width] × [0, height] through evenly spaced values.
 * @param {number[]} values @param {{width: number, height: number, top: number, slots?: number}} box
 *   `top` is the value at the upper edge; `slots` leaves room on the left for values that are still to come.
 * @returns {{line: string, area: string}}
 */
export function sparkPaths(values, { width, height, top, slots = values.length }) {
  if (values.length < 2) return { line: "", area: "" };
  const step = width / Math.max(1, slots - 1);
  const from = width - step * (values.length - 1);
  const y = (value) => (height - 1 - (Math.min(value, top) / top) * (height - 3)).toFixed(1);
  const line = values.map((value, index) => `${index === 0 ? "M" : "L"}${(from + index * step).toFixed(1)} ${y(value)}`).join("");
  return { line, area: `${line}L${width} ${height}L${from.toFixed(1)} ${height}Z` };
}
