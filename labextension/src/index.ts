/** The list of plugins, nothing else. */

import { commands } from './commands';
import { current } from './current';
import { rentals } from './rentals';
import { status } from './status';

export default [rentals, current, commands, status];
