/** A clock for components: draws them once a second, while the page is in sight. */

import * as React from 'react';
import type { IRentals } from './tokens';

/** The model's time now. The component that calls this is drawn again each second. */
export function useNow(rentals: IRentals): number {
  const [, draw] = React.useReducer((count: number) => count + 1, 0);
  React.useEffect(() => {
    const timer = window.setInterval(() => {
      if (!document.hidden) {
        draw();
      }
    }, 1000);
    return () => window.clearInterval(timer);
  }, []);
  return rentals.now();
}
