/** How figures are summed up, and which of them are a regression. */
import { assertEquals } from "@std/assert";
import { describe, test } from "node:test";
import { type Figure, isWithin, median, percentile, ratioOf, slope } from "./figures.ts";
import { findBroken, rounded } from "./table.ts";

const figure = (fields: Partial<Figure>): Figure => ({
  row: "row",
  what: "what",
  side: "side",
  unit: "s",
  values: [1],
  ...fields,
});

describe("figures", () => {
  test("the median of an even number of values lies between the two in the middle", () => {
    assertEquals(median([4, 1, 3, 2]), 2.5);
    assertEquals(median([9, 1, 5]), 5);
  });

  test("a percentile is interpolated between the values beside it, in numerical order", () => {
    assertEquals(percentile([10, 9, 100], 50), 10);
    assertEquals(percentile([0, 100], 99), 99);
    assertEquals(percentile([7], 99), 7);
  });

  test("the slope is that of the least squares", () => {
    assertEquals(slope([[0, 1], [10, 6], [20, 11]]), 0.5);
    assertEquals(slope([[0, 0], [1, 2], [2, 1]]), 0.5);
  });

  test("bounds are of the ratio where there is a base, and of the figure where there is none", () => {
    const compared = figure({ values: [6], base: { side: "other", value: 4 } });
    assertEquals(ratioOf(compared), 1.5);
    assertEquals(isWithin(compared, { atMost: 1.5 }), true);
    assertEquals(isWithin(compared, { atMost: 1.4 }), false);
    assertEquals(isWithin(figure({ values: [6] }), { atLeast: 7 }), false);
    assertEquals(isWithin(figure({}), undefined), undefined);
  });

  test("a figure that is not a number is within no bounds", () => {
    assertEquals(isWithin(figure({ values: [NaN] }), { atMost: 1 }), false);
  });

  test("only what is beyond its guard is a regression, not what is beyond its aim", () => {
    const figures = [
      figure({ what: "slow", values: [3], must: { atMost: 1 }, guard: { atMost: 4 } }),
      figure({ what: "broken", values: [5], must: { atMost: 1 }, guard: { atMost: 4 } }),
    ];
    assertEquals(findBroken(figures), ["row: broken, side: 5, must be ≤ 4"]);
  });

  test("three digits count, and whole numbers are not cut", () => {
    assertEquals([0.01234, 1.234, 12.34, 123.4, 1234.5, 10_000].map(rounded), [
      "0.012",
      "1.23",
      "12.3",
      "123",
      "1235",
      "10000",
    ]);
  });
});
